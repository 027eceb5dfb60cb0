"""How guest images are made: a distribution's packages, our guest files, a kernel and an initrd.

In: an ``ImageRequest``, or a foreign disk image. Out: an ``Image`` directory in the cache, complete or absent.
May import: errors, layout, wire's packing of the guest files; never the engine.
"""
