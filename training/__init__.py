"""The recipe of the embedded demonstration model: tokenizer, data, training, export, figures."""
