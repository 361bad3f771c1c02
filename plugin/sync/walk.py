"""Find the workspaces below a folder: which folders are ones, and which links may be followed."""

import os
import stat
from dataclasses import dataclass
from typing import Protocol

Mark = tuple[int, int, int, int]  # mtime_ns, ctime_ns, size, inode: a version of a file

_DEPTHS = (1, 3)  # where a status alone makes a workspace


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was skipped, and why; the same path and text with another `version` is another problem."""

    path: str
    text: str
    version: Mark | None = None


class Look(Protocol):
    """Says whether a folder that may be a workspace is one, taking note of what it is; OSError when it can't be seen.

    `folder` is where the folder lies: a path, relative to the open folder `dir_fd` unless that is None.
    """

    def __call__(self, name: str, folder: str, dir_fd: int | None, /) -> bool:
        """Look at the folder called `name`."""
        ...


class Walk:
    """One pass over the folders below the real path `base`; `problems` holds what could not be entered.

    `look` is asked about each folder at depth 1 or 3, and about each that has both `repo/` and `.meta/`; what is below
    a workspace isn't looked at. Links come last and add only folders that lie below `base` and were not reached
    before, so a loop ends and nothing is found twice.
    """

    def __init__(self, base: str, look: Look) -> None:
        self.problems: list[Problem] = []
        self._base = base
        self._look = look
        self._reached: set[str] = set()  # real paths
        self._folders: list[tuple[str, str]] = []  # to be entered: real path and name
        self._links: list[tuple[str, str]] = []  # to be followed: path and name

    def run(self) -> None:
        """Look at all that may be a workspace, in no order."""
        self._folders = [(self._base, "")]
        self._enter_all()
        while self._links:
            links, self._links = sorted(self._links), []
            for path, name in links:
                self._follow(path, name)
                self._enter_all()

    def _follow(self, path: str, name: str) -> None:
        real = os.path.realpath(path)
        if real in self._reached or not os.path.isdir(real):  # noqa: PTH112  # paths are text, see `version`
            return
        if not real.startswith(f"{self._base}/"):
            self.problems.append(Problem(printable(path), "is a link that leaves the workspaces; not followed"))
        elif name.count("/") + 1 in _DEPTHS:
            self._visit(real, name, real, None)
        else:
            self._folders.append((real, name))

    def _enter_all(self) -> None:
        while self._folders:
            folder, name = self._folders.pop()
            self._reached.add(folder)
            try:
                self._enter(folder, name)
            except FileNotFoundError:
                continue  # removed meanwhile, or there are no workspaces yet
            except OSError as error:
                self.problems.append(problem(folder, error))

    def _enter(self, folder: str, name: str) -> None:
        """Look at the folder when it is whole, and unless it is a workspace at those directly in it."""
        prefix = f"{name}/" if name else ""
        folders: list[str] = []
        links: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_symlink():
                    links.append(entry.name)
        if name and _is_whole(folder, folders, links) and self._look(name, folder, None):
            return
        self._links += [(f"{folder}/{link}", prefix + link) for link in links]
        if prefix.count("/") + 1 not in _DEPTHS:
            self._folders += [
                (path, prefix + child) for child in folders if (path := f"{folder}/{child}") not in self._reached
            ]
        elif folders:
            self._visit_all(folder, prefix, sorted(folders))  # the sort of all names has little left to do

    def _visit_all(self, folder: str, prefix: str, children: list[str]) -> None:
        # From an open folder the way to what is in it is shorter, for each of maybe thousands of files.
        dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for child in children:
                self._visit(f"{folder}/{child}", prefix + child, child, dir_fd)
        finally:
            os.close(dir_fd)

    def _visit(self, real: str, name: str, folder: str, dir_fd: int | None) -> None:
        """Look at a folder that may be a workspace by its depth; when it is none, leave it to be entered."""
        if real in self._reached:
            return
        try:
            if self._look(name, folder, dir_fd):
                self._reached.add(real)
            else:
                self._folders.append((real, name))
        except OSError as error:
            self.problems.append(problem(real, error))


def version(path: str, dir_fd: int | None = None) -> Mark | None:
    """Return the version of a regular file, links followed; None when there is no such file.

    Raises OSError when that can't be seen.
    """
    try:
        return regular(os.stat(path, dir_fd=dir_fd))  # a Path for each file would double the cost of a warm scan
    except (FileNotFoundError, NotADirectoryError):
        return None


def regular(info: os.stat_result) -> Mark | None:
    """Return the version that a stat shows; None when it isn't a regular file's."""
    return (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino) if stat.S_ISREG(info.st_mode) else None


def is_link(path: str, dir_fd: int | None = None) -> bool:
    """Say whether a path is a link itself; False when there is nothing."""
    try:
        return stat.S_ISLNK(os.lstat(path, dir_fd=dir_fd).st_mode)
    except OSError:
        return False


def inside(path: str, base: str) -> bool:
    """Say whether a path, links resolved, lies below the real path `base`."""
    return os.path.realpath(path).startswith(f"{base}/")


def problem(path: str, error: Exception, mark: Mark | None = None) -> Problem:
    """Describe what was wrong with a path."""
    text = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
    return Problem(printable(path), text, mark)


def printable(path: str) -> str:
    """Return a path as text that any wire can carry: bytes that aren't UTF-8 become escapes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _is_whole(folder: str, folders: list[str], links: list[str]) -> bool:
    """Say whether a folder has both `repo/` and `.meta/`, themselves or by links."""
    return all(
        inner in folders or (inner in links and os.path.isdir(f"{folder}/{inner}"))  # noqa: PTH112  # see `version`
        for inner in ("repo", ".meta")
    )
