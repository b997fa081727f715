"""Who writes negatives: rules, a naive writer, a language model."""
