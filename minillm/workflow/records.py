"""Records of what is not made here: entries of the configuration that come from the hub or from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minillm.config import layout
from minillm.config.chat import linked
from minillm.config.derive import canonical
from minillm.config.subsets import SUBSETS
from minillm.data.local_files import content_of, is_local
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.readers import read_json
from minillm.workflow.jobs import Jobs


class Records(Jobs):
    """Input functions of jobs that read what comes from elsewhere."""

    def recorded(self, section: str, *names: str) -> list[str]:
        """Records of what is not made here: of the entries of a section that come from the hub or from files.

        Rows of the stage `subsets` are made here.
        """
        paths = []
        for name in names:
            spec = getattr(self.config, section)[name]
            if is_local(spec.source, spec.path) and not spec.path.startswith(SUBSETS):
                paths.append(layout.local(f"{section}/{name}"))
            elif spec.source == "hub":
                paths.append(layout.fetched(f"{section}/{name}"))
        return list(map(self.below, paths))

    def records(self, section: str, key: str) -> Callable[[Any], list[str]]:
        """Input function: the record of the entry that the wildcard `key` names, if it has one."""
        return lambda wildcards: self.recorded(section, wildcards[key])

    def records_of_rows(self) -> list[str]:
        """Records of training rows and dev rows."""
        return self.recorded("datasets", self.config.data.train, self.config.data.dev)

    def records_of_data(self, wildcards: Any) -> list[str]:
        """Input function: records of tokenizers, training rows, dev rows and corpus; chat templates."""
        data = self.config.data
        names = [wildcards.tokenizer, *linked(self.config, wildcards.tokenizer)]
        chats = [self.config.tokenizers[name].chat for name in names] if data.template == "chat" else []
        return [
            *self.recorded("tokenizers", *names),
            *self.recorded("datasets", *filter(None, (data.train, data.dev, data.corpus))),
            *(str(resolve_path(c.template, "tokenizers.chat.template")) for c in chats if c and c.template),
        ]

    def records_of_task(self, wildcards: Any) -> list[str]:
        """Input function: the record of a classification task's data set."""
        return self.recorded("datasets", self.config.calibration.tasks[wildcards.task].dataset)

    def record_of_harness(self) -> list[str]:
        """The record of the folder with our own tasks of lm-eval, if the configuration names one."""
        folder = self.config.harness.task_folder
        return [self.below(layout.local("harness/tasks"))] if folder else []

    def record_of_judge(self) -> list[str]:
        """The record of a judge that is a local model."""
        local = self.config.judge.kind == "transformers"
        return [self.below(layout.local("judge/model"))] if local else []

    def local_content(self, wildcards: Any) -> str:
        """Params function: what the local files of an entry hold, as text.

        As long as they are not here (a disk that is not mounted, $MINILLM_DATA not set) it is what the record
        says already, so that nothing runs again for that.
        """
        section, name = wildcards.source.split("/", 1)
        # Sections that are one entry each.
        single = {"judge": self.config.judge.model, "harness": self.config.harness.task_folder}
        path = single[section] if section in single else getattr(self.config, section)[name].path
        run = Path(layout.run_folder(self.config.run))
        found = content_of(section, path, run)
        if found is None:
            try:
                recorded = read_json(run / layout.local(wildcards.source))
                if recorded["path"] == path:
                    return canonical(recorded)
            # No record, or a damaged one: it is written anew.
            except (UserError, KeyError, TypeError):
                pass
        return canonical(found or {"path": path, "content": None})

    def subset_of_test(self, wildcards: Any) -> list[str]:
        """Input function: the file of rule `subsets` that a test set is read from, if it is such a set."""
        dataset = self.config.datasets[wildcards.test]
        return [self.config.dataset(wildcards.test).path] if dataset.path.startswith(SUBSETS) else []
