"""A whole system as one document: written from what is, compared with what shall be, carried out step by step.

In: TOML text, the Admin API. Out: a ``Document``, a plan of steps, calls. May import: client, errors, tomllib.

``document`` is the noun, ``text`` turns TOML into it and back, ``present`` reads the running system, ``plan`` compares
two of them. Only what a document mentions is its business: a qube that it does not name is left alone (unless asked
otherwise), and so is a section that a qube does not have. Within a qube that it names, properties that are not
mentioned have their defaults.
"""
