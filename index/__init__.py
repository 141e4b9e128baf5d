"""The index: tables, FAISS shards, search, keyframe selection (DKS) and retention. Never imports torch.

    errors records schemas files validation   light: imported by every room
    store                                     the interface to most of the following
    tables columns delta/                     the three Delta tables
    commits/ patches/ search/ maintenance/    writing, patch encodings, FAISS, operations on a whole store
    window keyframes second_grid              what questions and samplers compute with
    standing_questions                        questions that are asked of every new frame

Import from the modules: `from index.store import Store`. The public API of the project is the package `sightline`.
"""
