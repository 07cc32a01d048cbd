"""What JAX compiles while a test looks."""

import contextlib
import logging
import re

import jax


@contextlib.contextmanager
def compilations():
    """Collects the names of the programs that JAX compiles."""
    names = []

    class Collect(logging.Handler):
        def emit(self, entry):
            if found := re.match(r"Finished XLA compilation of (\S+)", entry.getMessage()):
                names.append(found[1])

    handler, logger = Collect(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
