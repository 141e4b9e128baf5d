"""The frame encoder (CLIP) and the patch encoder (SigLIP)."""
