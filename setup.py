"""The parts of the build that pyproject.toml cannot say: the optional extension modules and the whole source archive.

The rule: all extension modules are built or none is. Without a C compiler, or with ZMQRAFT_NO_EXTENSIONS=1, the pure
build is made, and standard error says so; ZMQRAFT_REQUIRE_EXTENSIONS=1 makes that an error instead. ZMQRAFT_DEBUG=1
builds for debuggers, line tracing and sanitizers (add those through CFLAGS and LDFLAGS).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

#: Add a module here, and its name in zmqraft/_accel.py.
MODULES = ["frames", "log_index", "request_index", "checksums", "zmq_io", "commit_loop"]
SOURCES = "_speedups"
#: The .pxd files stand under the path of their module's name: elsewhere Cython silently does not find them.
INCLUDE = f"{SOURCES}/include"
#: What the source archive holds beside the package: its tests and benchmarks run from it.
SDIST_TREES = ["tests", "bench", "examples", SOURCES, ".ci"]
SDIST_EXCLUDED_SUFFIXES = {".c", ".so", ".pyd", ".pyc"}


def switch(name: str) -> bool:
    """Whether an environment variable is set to something other than 0; as zmqraft/_accel.py reads them."""
    return os.environ.get(name, "") not in ("", "0")


DEBUG = switch("ZMQRAFT_DEBUG")
REQUIRED = switch("ZMQRAFT_REQUIRE_EXTENSIONS")
PURE = switch("ZMQRAFT_NO_EXTENSIONS")


def say(text: str) -> None:
    print(f"zmqraft: {text}", file=sys.stderr)


class OptionalBuildExt(build_ext):
    """Cythonize and compile every module; on any failure go on with none, unless they are required."""

    def run(self) -> None:
        in_place = self.inplace
        try:
            # Here and not at the top: `cythonize` replaces the sources, and the source archive needs the .pyx.
            self._cythonize()
            super().run()
        # Compilers that are missing, broken or half installed fail in many ways, each with an exception of its own.
        except Exception as error:
            if REQUIRED:
                raise
            self._discard(in_place)
            say(f"the extension modules could not be built: {type(error).__name__}: {error}")
            say("making the pure Python build: everything works, but slower")

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "unix":
            # Without debug information, which Python's own flags often ask for, a module is a sixth of the size.
            flags = ["-O0", "-g3", "-fno-omit-frame-pointer", "-UNDEBUG"] if DEBUG else ["-g0"]
            for extension in self.extensions:
                extension.extra_compile_args += flags
        super().build_extensions()

    def _cythonize(self) -> None:
        from Cython.Build import cythonize

        compiled = cythonize(
            self.extensions,
            include_path=[INCLUDE],
            build_dir=self.build_temp,
            force=DEBUG,
            compiler_directives={"linetrace": DEBUG},
        )
        # `cythonize` makes new Extensions, without what setuptools keeps on the ones that it has prepared.
        for extension, result in zip(self.extensions, compiled, strict=True):
            extension.sources = result.sources

    def _discard(self, in_place: bool) -> None:
        """Remove what was built so far, or by an earlier build, so that no mixture is left."""
        for self.inplace in {False, in_place}:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = []


class CompleteSdist(sdist):
    """A source archive from which the tests and benchmarks run as well."""

    def make_distribution(self) -> None:
        self.filelist.extend(sorted(set(sdist_files()) - set(self.filelist.files)))
        super().make_distribution()


def sdist_files() -> Iterator[str]:
    for tree in SDIST_TREES:
        for path in sorted(Path(tree).rglob("*")):
            excluded = path.suffix in SDIST_EXCLUDED_SUFFIXES or "__pycache__" in path.parts
            if path.is_file() and not excluded:
                yield str(path)


def extensions() -> list[Extension]:
    if PURE and REQUIRED:
        raise SystemExit("zmqraft: ZMQRAFT_NO_EXTENSIONS and ZMQRAFT_REQUIRE_EXTENSIONS are both set: unset one")
    if PURE:
        say("making the pure Python build, as ZMQRAFT_NO_EXTENSIONS asks")
        return []
    macros = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")] if DEBUG else []
    return [Extension(f"zmqraft._speedups.{name}", [f"{SOURCES}/{name}.pyx"], define_macros=macros) for name in MODULES]


setup(
    packages=[*find_packages(include=["zmqraft", "zmqraft.*"]), "zmqraft._speedups"],
    package_dir={"zmqraft._speedups": SOURCES},
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuildExt, "sdist": CompleteSdist},
)
