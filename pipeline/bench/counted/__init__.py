"""Operations and bytes of a question, counted from the sizes in a profile without running it."""
