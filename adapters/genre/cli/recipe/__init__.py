"""`genre recipe …`: write a starting recipe, check one, show a row as the model sees it."""
