"""The vocabulary of a model: what its tokenizer cannot spell of some texts, and the tokens that teach it to.

Nothing is imported here: what needs no model is used without torch.
"""
