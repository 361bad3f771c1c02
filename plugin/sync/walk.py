"""Find the workspaces below a folder: which folders are ones, and which links may be followed."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

Mark = tuple[int, int, int, int]  # mtime_ns, ctime_ns, size, inode: a version of a file

_DEPTHS = (1, 3)  # where a status alone makes a workspace


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was skipped, and why; the same path and text with another `version` is another problem."""

    path: str
    text: str
    version: Mark | None = None


class Walk:
    """One pass over the folders below the real path `base`; `problems` holds what could not be entered.

    A folder with a regular `status.json` is a workspace at depth 1 or 3, or when it has both `repo/` and `.meta/`;
    what is below a workspace isn't looked at. Links come last and add only folders that lie below `base` and were not
    reached before, so a loop ends and nothing is found twice.
    """

    def __init__(self, base: str) -> None:
        self.problems: list[Problem] = []
        self._base = base
        self._reached: set[str] = set()  # real paths
        self._folders: list[tuple[str, str]] = []  # to be entered: real path and name
        self._links: list[tuple[str, str]] = []  # to be followed: path and name

    def workspaces(self) -> Iterator[tuple[str, Mark]]:
        """Yield each workspace's name (its path below `base`) and the version of its status, in no order."""
        yield from self._enter_all([(self._base, "")])
        while self._links:
            links, self._links = sorted(self._links), []
            for path, name in links:
                real = os.path.realpath(path)
                if real in self._reached or not os.path.isdir(real):  # noqa: PTH112  # paths are text, see `version`
                    continue
                if not real.startswith(f"{self._base}/"):
                    self.problems.append(Problem(printable(path), "is a link that leaves the workspaces; not followed"))
                    continue
                yield from self._sort([(real, name)])
                yield from self._enter_all(self._folders)

    def _enter_all(self, folders: list[tuple[str, str]]) -> Iterator[tuple[str, Mark]]:
        self._folders = folders
        while folders:
            folder, name = folders.pop()
            self._reached.add(folder)
            try:
                yield from self._enter(folder, name)
            except FileNotFoundError:
                continue  # removed meanwhile, or there are no workspaces yet
            except OSError as error:
                self.problems.append(problem(folder, error))

    def _enter(self, folder: str, name: str) -> Iterator[tuple[str, Mark]]:
        """Yield the folder when it is a workspace, else those directly in it, leaving the others to be entered."""
        prefix = f"{name}/" if name else ""
        folders: list[tuple[str, str]] = []
        links: list[tuple[str, str]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, prefix + entry.name))
                elif entry.is_symlink():
                    links.append((entry.path, prefix + entry.name))
        if name and _is_whole(folder, folders, links) and (mark := version(f"{folder}/status.json")) is not None:
            yield name, mark
            return
        self._links += links
        yield from self._sort(folders)

    def _sort(self, folders: list[tuple[str, str]]) -> Iterator[tuple[str, Mark]]:
        """Yield the siblings that are workspaces by their depth, leaving the others to be entered."""
        by_depth = bool(folders) and folders[0][1].count("/") + 1 in _DEPTHS
        for folder, name in folders:
            if folder in self._reached:
                continue
            try:
                mark = version(f"{folder}/status.json") if by_depth else None
            except OSError as error:
                self.problems.append(problem(folder, error))
                continue
            if mark is None:
                self._folders.append((folder, name))
            else:
                self._reached.add(folder)
                yield name, mark


def version(path: str) -> Mark | None:
    """Return the version of a regular file, links followed; None when there is no such file.

    Raises OSError when that can't be seen.
    """
    try:
        return regular(os.stat(path))  # noqa: PTH116  # a Path for each file would double the cost of a warm scan
    except (FileNotFoundError, NotADirectoryError):
        return None


def regular(info: os.stat_result) -> Mark | None:
    """Return the version that a stat shows; None when it isn't a regular file's."""
    return (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino) if stat.S_ISREG(info.st_mode) else None


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


def _is_whole(folder: str, folders: list[tuple[str, str]], links: list[tuple[str, str]]) -> bool:
    """Say whether a folder has both `repo/` and `.meta/`, themselves or by links."""
    inner = {path for path, _ in folders}
    inner.update(path for path, _ in links if os.path.isdir(path))  # noqa: PTH112  # see `version`
    return f"{folder}/repo" in inner and f"{folder}/.meta" in inner
