import subprocess
import sys

PROGRAM = """
import sys
import jax, jax.numpy, numpy
before = set(sys.modules)
from devft_jax.developmental import *
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
print(*sorted(name.partition(".")[0] for name in sys.modules))
"""


def test_imports_only_jax_numpy_and_the_standard_library():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    new, loaded = (set(line.split()) for line in done.stdout.splitlines())
    assert new <= {"devft_jax", "jax", "jaxlib", "numpy"}
    assert not loaded & {"flax", "optax", "transformers", "orbax", "datasets", "torch", "sklearn"}
