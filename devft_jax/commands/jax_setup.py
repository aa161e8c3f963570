"""JAX settings that every command shares: devices, arithmetic, and the cache of compiled programs.

A command calls `configure_jax` before JAX is first used, and `require_devices` before it computes anything.
"""

import os
import tempfile

from devft_jax.errors import InputError
from devft_jax.files import cache_folder, printable
from devft_jax.runtime.screen import complain


def configure_jax() -> None:
    """Configure JAX before its first use: one host device per core, and a cache of compiled programs on disk.

    Raises:
      InputError: `DEVFT_CACHE` is not a valid path.
    """
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)
    jax.config.update("jax_compilation_cache_dir", programs_folder())
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # A command's results must not depend on general JAX settings in the environment.
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_disable_jit", False)
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        # Some values are computed once, in host memory, which needs the CPU backend beside the accelerator.
        jax.config.update("jax_platforms", f"{platforms},cpu")


def programs_folder() -> str | None:
    """The folder of compiled programs; created if it is missing.

    Returns:
      The folder; None, after a warning, if it cannot be written.
    """
    folder = cache_folder() / "programs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        complain(
            f"warning: the cache {folder} cannot be written ({error.strerror}), so programs are compiled in every run; "
            "set DEVFT_CACHE to a writable folder."
        )
        return None
    return str(folder)


def require_devices() -> None:
    """Check that JAX has a device of the platform that JAX_PLATFORMS names.

    Raises:
      InputError: there is no such device.
    """
    import jax

    named = os.environ.get("JAX_PLATFORMS", "")
    reason = "no such device"
    try:
        # If the CPU is among the platforms, JAX falls back on it without an error.
        if not named or "cpu" in named.split(",") or jax.devices()[0].platform != "cpu":
            jax.devices()
            return
    except RuntimeError as error:
        reason = " ".join(str(error).split())
    if not named:
        raise InputError(f"JAX finds no device ({reason}); set JAX_PLATFORMS=cpu to compute on the CPU.")
    raise InputError(
        f"JAX_PLATFORMS '{printable(named)}' names a platform that this machine does not have ({reason}); unset it, or "
        "set it to cpu."
    )
