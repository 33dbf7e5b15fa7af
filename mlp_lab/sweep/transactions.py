"""Several writes to a study as one transaction of its database: a commit waits for the disk, and Optuna's are many.

It also leaves nothing half written by a worker that is killed in between. Other kinds of storage write at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker


class JointSession(Session):
    """A session of Optuna's whose commits wait while `joint` holds them; reads see what is held."""

    holding, spoiled = False, False

    def commit(self) -> None:
        """Commits; while held, writes into the open transaction only."""
        if self.holding:
            self.flush()
        else:
            super().commit()

    def rollback(self) -> None:
        """Undoes what is not committed."""
        self.spoiled = self.holding
        super().rollback()

    def close(self) -> None:
        """Closes; while held, only forgets what it has read, so that other workers' commits are seen."""
        if self.holding:
            self.expunge_all()
        else:
            super().close()


def allow_joint(storage: RDBStorage) -> None:
    """Lets `joint` hold a storage's commits."""
    storage.scoped_session = scoped_session(sessionmaker(bind=storage.engine, class_=JointSession))


@contextmanager
def joint(storage: BaseStorage) -> Iterator[None]:
    """Commits what this thread writes inside at the end, at once; an exception undoes it.

    SQLite lets nobody else write meanwhile: nothing inside may take long.

    Raises:
        StorageInternalError: The database has refused it, or a part of it.
    """
    sessions = getattr(getattr(storage, "_backend", storage), "scoped_session", None)
    session = sessions() if sessions is not None else None
    if not isinstance(session, JointSession) or session.holding:
        yield
        return
    session.holding, session.spoiled = True, False
    try:
        yield
        session.holding = False
        if session.spoiled:  # Optuna passes over what another has written at the same time
            raise StorageInternalError("a part of what belongs together could not be written")
        session.commit()
    except SQLAlchemyError as error:
        raise StorageInternalError(" ".join(str(error).split())) from error
    finally:
        session.holding = False
        session.close()
