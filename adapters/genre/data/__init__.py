"""Data: interaction logs, catalogues, labelled texts, and the rows that a model reads."""
