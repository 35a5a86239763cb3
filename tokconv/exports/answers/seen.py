"""Whether a task asks about images that were learned from: answers about those say little about new images.

The split of a task and that of a token store are drawn apart, unless the folder itself declares one.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokconv.errors import printable
from tokconv.exports.answers.tasks import Task
from tokconv.store.contents import read_all_digests
from tokconv.store.reader import TokenStore


def count_seen(task: Task, store: TokenStore) -> int:
    """Return how many images of a task are training images of a store, whole or as views, by the content of their
    files; 0 for images that are drawn, and for a store that knows no contents."""
    if task.content is None:
        return 0
    digests = read_all_digests(store.shard_paths())
    learned = {digests[image] for image in store.train_indices.tolist()}
    return sum(task.content(number) in learned for number in range(task.num_images))


def seen_text(tasks: Iterable[Task], store: TokenStore) -> str:
    """Return one sentence for each task that asks about training images of a store; "" without any."""
    counts = [(task, count_seen(task, store)) for task in tasks]
    return "\n".join(
        f"{task.name}: {count} of its {task.num_images} images are training images of {printable(store.path)}, on "
        "which what was trained or fitted on that store looks better than on new ones; ask about images of another "
        "folder, or sort the folder into train and test before it is encoded"
        for task, count in counts
        if count
    )
