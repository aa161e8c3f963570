"""Settings of the test suite: CPU, eight host devices, float32 products, compiled programs kept for the session's life."""

import copy
import ctypes
import functools
import gc
import os
import signal
import sys
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compiling. What programs compute is what is tested, not how fast: XLA's fusion emitters alone
# take three quarters of the compilation of a chunk. The commands that tests start as processes compile alike.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_parallel_codegen_split_count=1"
    # Later versions know no such flag, and a flag that is not known ends the process.
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10.")
)

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src import pjit
from jax._src.interpreters import pxla

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)

WORDS = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(str(number) for number in range(1000))
REPOSITORY = Path(__file__).parents[1]
PROGRAMS = REPOSITORY / ".cache" / "test-programs"
# Small programs too: an operation outside `jit` is one for every shape, and hundreds of them cost more than a large one.
jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Where in Python an operation was written takes longer to note than many of them take to compile.
jax.config.update("jax_traceback_in_locations_limit", 0)
# Tracing allocates many objects and little garbage, so it is collected less often.
gc.set_threshold(50_000, 20, 50)
# A worker of the suite keeps compiled programs while it takes less memory than this, and so stays below 2 GB.
MOST_MEBIBYTES = 1_300
# Dropping them must be worth it, where other things take the memory.
LEAST_MEBIBYTES = 250
kept_mebibytes = 0
# JAX has no public way to drop lowered programs alone. Where these caches have other names, all are dropped earlier.
LOWERED = [
    getattr(module, name)
    for module, name in ((pxla, "_cached_lowering_to_hlo"), (pjit, "_pjit_lower"))
    if hasattr(module, name)
]

# Under nohup the tests would ignore the signal that they send, and so would the processes that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("devft", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("devft")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models that development uses; tests that want it are skipped without it."""
    folder = Path(os.environ.get("DEVFT_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"the folder of real data and models is not at {folder}")
    return folder


def resident_mebibytes() -> int:
    """Memory of this process that lies in RAM; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20 if pages.exists() else 0


def give_back() -> None:
    """Collect garbage, and give the system what the C library keeps of freed memory: in a worker several gigabytes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Compiled programs serve later tests too, until they take so much memory that all are dropped and it is given back."""
    global kept_mebibytes
    yield
    most = max(MOST_MEBIBYTES, kept_mebibytes + LEAST_MEBIBYTES)
    if resident_mebibytes() > most:
        # Of a small program, what it was compiled from takes four fifths, and is not needed again.
        for cache in LOWERED:
            cache.cache_clear()
        give_back()
    if resident_mebibytes() > most:
        # What was compiled ahead of time is held by the engines, which modules share between their tests.
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ("devft_jax", "tests"):
                for member in list(vars(module).values()):
                    if isinstance(member, functools._lru_cache_wrapper):
                        member.cache_clear()
        jax.clear_caches()
        give_back()
        kept_mebibytes = resident_mebibytes()


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    """A cache of the test session's own instead of the user's, in which commands find the programs that tests compiled."""
    folder = tmp_path_factory.mktemp("cache")
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    (folder / "programs").symlink_to(PROGRAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEVFT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def word_tokenizer():
    """Factory of `transformers` tokenizers in which every known word is one token.

    Ids are 0 `<unk>`, 1 `<s>`, which leads a text, 2 `</s>`, 3 to 28 the letters, then the numbers from "0" at 29 on.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    @functools.cache
    def build(*, bos=True, eos=True, words=WORDS):
        special = {"<unk>": 0, "<s>": 1, "</s>": 2}
        vocabulary = special | {word: index for index, word in enumerate(words, len(special))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        if bos:
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            unk_token="<unk>",
            bos_token="<s>" if bos else None,
            eos_token="</s>" if eos else None,
        )

    # A copy, so that a test that gives its tokenizer a chat template gives it to no other test's.
    return lambda **options: copy.copy(build(**options))
