"""Operations on ragged spans, each with its derivation."""
