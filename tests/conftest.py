"""Set-up shared by all tests: typed shapes are checked, eight host devices, no network."""

import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("mlecs_jax", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

from mlecs_jax.repro.engine import memory_maps  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory) -> None:
    """Programs compiled once a session: tests that differ in traced values alone share them."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["MLECS_CACHE_DIR"] = str(cache)  # also of the processes that tests start
    jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Programs are forgotten between files once a process holds much: two workers shall fit beside
    a desktop. The session's cache on disk still has them."""
    yield
    if _resident_bytes() > 2.5 * 2**30:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def bounded_maps():
    """Programs are forgotten before they fill the maps of memory that Linux allows a process, past
    which compilers crash."""
    yield
    if memory_maps(os.getpid()) > 0.75:
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    """Memory this process holds now; 0 where the system does not say."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder of real datasets; tests that need it are skipped where there is none."""
    folder = os.environ.get("MLECS_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MLECS_DATA_DIR names no folder of real data")
    return Path(folder)


@pytest.fixture
def cache_dir(tmp_path, monkeypatch) -> Path:
    """A cache of its own for one test, so that no test sees another's prepared data."""
    monkeypatch.setenv("MLECS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
