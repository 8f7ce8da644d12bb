"""Inference: every model provider behind one typed token stream.

The spine, from the outside in: ``app`` puts the parts together, ``servicer``
decodes and encodes, ``generation`` and ``embedding`` are the use cases,
``routing`` and ``catalogue`` know what can be asked, ``adapters`` are provider
clients, ``dialects`` their wire formats, ``profiles`` what models can do, and
``model``, ``events`` and ``ports`` the nouns that all of them share.
"""
