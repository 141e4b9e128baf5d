"""HiCo (VideoChat-Flash): footage read by clips of four frames instead of keyframes and merged frames."""
