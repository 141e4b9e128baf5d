"""Operations on a whole store: merging small files, checking that everything agrees, deleting footage for good."""
