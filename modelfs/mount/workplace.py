"""What a file of `main/` asks of the folder that it is in; working.py answers it."""

from abc import abstractmethod
from dataclasses import replace

from modelfs.mount.tree import Folder
from modelfs.names import ModelId
from modelfs.registry.listing import Folder as ListedFolder


class WorkPlace(Folder):
    """A folder of `main/`, or `main/` itself."""

    @property
    @abstractmethod
    def model(self) -> ModelId:
        """The model that it belongs to."""

    @property
    @abstractmethod
    def path(self) -> str:
        """Its path below main/, '' of main/ itself."""

    def path_of(self, name: str) -> str:
        path = self.path
        return f"{path}/{name}" if path else name

    @abstractmethod
    async def listed(self) -> ListedFolder:
        """Return what the registry holds in the folder."""

    def known(self) -> ListedFolder:
        """Return what memory holds of that, with no request."""
        return self.services.registry.known_folder(self.model, self.path)

    def beside(self) -> ListedFolder:
        """Return what of that may be brought ahead: what is staged is here already."""
        known, staged = self.known(), self.services.staging.in_folder(self.model, self.path)
        if not staged:
            return known
        files = {name: info for name, info in known.files.items() if name not in staged}
        return replace(known, files=files)
