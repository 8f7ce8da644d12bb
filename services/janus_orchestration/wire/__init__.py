"""Between the contract's messages and the model's nouns; validates what comes in."""
