"""The library that is installed is found; what is missing is said with what to install."""

import sys
from types import ModuleType

import pytest

from irloom.backends.tensorrt import library
from irloom.backends.tensorrt.library import Kernels, Library, LibraryMissing


@pytest.fixture
def found():
    """``load`` as in a process that has not asked yet."""
    return library.load.__wrapped__


def stand_in(folder, monkeypatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that what is imported goes again
    del sys.modules[name]


@pytest.mark.tensorrt
def test_the_installed_library_loads(found):
    try:
        lib = found()
    except LibraryMissing as e:
        pytest.skip(str(e))
    assert isinstance(lib.trt, ModuleType) and lib.version == lib.trt.__version__
    assert lib.packed is (lib.name == "tensorrt")


def test_tensorrt_comes_first(tmp_path, monkeypatch, found):
    stand_in(tmp_path, monkeypatch, "tensorrt", "__version__ = '11.4.0.106'")
    lib = found()
    assert str(lib) == "tensorrt 11.4.0.106" and lib.packed


def test_a_layer_of_experts_is_for_blackwell_in_data_centers() -> None:
    full, rtx = (Library(name, "11.4", None) for name in ("tensorrt", "tensorrt_rtx"))
    assert [full.kernels(c).experts for c in ("10.0", "9.0", "12.0", None)] == [True, False, False, False]
    assert rtx.kernels("10.0") == Kernels()


def test_one_that_is_too_old_is_refused_with_what_to_install(tmp_path, monkeypatch, found):
    stand_in(tmp_path, monkeypatch, "tensorrt", "__version__ = '10.13.0.35'")
    monkeypatch.setattr(library, "_PLACES", library._PLACES[:1])
    with pytest.raises(LibraryMissing) as raised:
        found()
    assert str(raised.value) == (f"TensorRT: tensorrt 10.13.0.35 is older than 11.0\nhint: {library.INSTALL}")


def test_one_that_does_not_load_is_refused_with_its_reason(tmp_path, monkeypatch, found):
    stand_in(tmp_path, monkeypatch, "tensorrt", "raise OSError('libnvinfer.so.11: no such file')")
    monkeypatch.setattr(library, "_PLACES", library._PLACES[:1])
    with pytest.raises(LibraryMissing, match=r"tensorrt does not load: libnvinfer\.so\.11"):
        found()


def test_none_at_all_is_refused(monkeypatch, found):
    monkeypatch.setattr(library, "_PLACES", (("tensorrt", "no_such_module", ""),))
    with pytest.raises(LibraryMissing, match="no_such_module is not installed"):
        found()


def test_bindings_without_their_libraries_are_refused(tmp_path, monkeypatch, found):
    stand_in(tmp_path, monkeypatch, "bindings_alone", "raise ImportError")
    monkeypatch.setattr(library, "_PLACES", (("tensorrt_rtx", "bindings_alone", "no_such_wheel"),))
    with pytest.raises(LibraryMissing, match="but the libraries of no_such_wheel are not"):
        found()


def test_bindings_of_another_release_than_their_libraries_are_refused(tmp_path, monkeypatch, found):
    stand_in(tmp_path, monkeypatch, "bindings_of_old", "__version__ = '1.6.0.1'")
    monkeypatch.setattr(library, "_preload", lambda package: "1.7.1.116")
    monkeypatch.setattr(library, "_PLACES", (("tensorrt_rtx", "bindings_of_old", "a_wheel"),))
    with pytest.raises(LibraryMissing, match=r"is 1\.6\.0\.1, and the libraries of a_wheel are 1\.7\.1\.116"):
        found()
