"""Where each Trio task of this process waits: what py-spy cannot see, since a waiting task has no thread."""

import trio

__all__ = ["task_tree"]

MAX_LINES = 40
"""So that one log line holds it."""


def task_tree() -> list[str]:
    """One line for each task, indented by nursery depth: its name and where it waits. Empty outside `trio.run`."""
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return []
    return _lines(root, 0)[:MAX_LINES] if root else []


def _lines(task: trio.lowlevel.Task, depth: int) -> list[str]:
    frames = list(task.iter_await_frames())
    where = " < ".join(f"{frame.f_code.co_name}:{line}" for frame, line in frames[-3:][::-1])
    lines = [f"{'  ' * depth}{task.name} at {where}"]
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda t: t.name):
            lines += _lines(child, depth + 1)
    return lines
