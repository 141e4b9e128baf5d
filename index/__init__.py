"""The index: tables, FAISS shards, search, keyframe selection (DKS) and retention. Never imports torch.

    errors records schemas files            light: imported by every room
    store                                   the interface to all of the following
    tables delta_table columns row_filter   the three Delta tables
    commits/ patches/ search/ maintenance/  writing, patch encodings, FAISS, operations on a whole store
    window keyframes moments second_grid    what a question, a search and the sampler compute with
    standing_questions                      questions that are asked of every new frame

Import from the modules: `from index.store import Store`. The public API of the project is the package `sightline`.
"""
