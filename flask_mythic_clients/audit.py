"""Both stores compared: entries that do not say what the rows say, and those that belong to no client."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from itertools import chain, islice
from typing import NamedTuple

from .entries import Entries, EntryRule, KeyTemplates, as_bytes, wished
from .errors import BusyError, ConfigurationError, EntriesRefusedError, ForeignError, StoreError
from .many import batches
from .model import Client, Looked, OutOfLine, SoftDeleteEntries, Wrong, is_client_id
from .ports import AuditedRepository, ClientRepository, KeyValueStore, ReadableStore, ScannableStore
from .sampling import chosen
from .templates import Template

_AT_ONCE = 1000
_HELD_AT_ONCE = 500
_KEPT = 100_000  # that seem wrong; with more the audit waits before its end, so that its memory does not grow
_TRIED = 100  # clients, to see whether owners can be found at all
_OWN = "mythic:"  # what our own keys in the store begin with


class Audit:
    """Compares both stores; what seems wrong is looked at again after a time, with the client held.

    Until then a request or a reconcile may have been at it. Repairs only if it is to.
    """

    def __init__(
        self,
        repository: ClientRepository,
        kv: KeyValueStore,
        stores: Sequence[KeyValueStore],
        entries: EntryRule,
        of_inactive: SoftDeleteEntries,
        *,
        repair: bool,
        min_age: timedelta,
    ) -> None:
        self._repository = repository
        self._kv = kv
        self._stores = [store for store in stores if isinstance(store, ReadableStore)]
        if len(self._stores) < len(stores):
            raise ConfigurationError("This key-value store cannot be read.")
        self._entries = entries
        self._of_inactive = of_inactive
        self._repair = repair
        self._min_age = min_age
        self._owners: _Owners | None = None
        # Those that seem wrong, in the order in which they were found.
        self._clients: dict[str, None] = {}
        self._orphans: dict[str, None] = {}

    def look(self, sample: int | None) -> Iterator[Looked]:
        """Look at every client and every entry, or at so many of each, chosen at random."""
        clients = self._repository.clients()
        if sample is not None:
            if not isinstance(self._repository, AuditedRepository):
                raise ConfigurationError("This repository does not choose clients at random.")
            clients = self._repository.sample(sample)
        if isinstance(self._entries, KeyTemplates) and isinstance(self._repository, AuditedRepository):
            self._owners = _Owners(self._repository, self._repository.clients, self._entries)
        for some in batches(clients, _AT_ONCE):
            self._clients.update(dict.fromkeys(self._seem_wrong(some)))
            yield Looked(clients=len(some))
            yield from self._look_again(beyond=_KEPT)
        if self._owners is None:
            yield Looked(note="Nobody can tell whose a key is, as where a function names them: " + _ROWS_ONLY)
        else:
            yield from (Looked(note=note) for note in self._owners.notes)
            for store in self._stores:
                yield from self._look_for_orphans(self._owners, store, sample)
        yield from self._look_again()

    def _seem_wrong(self, clients: Sequence[Client]) -> Iterator[str]:
        unnamed = set[str]()
        for out, _ in self._compare(clients):
            if out.wrong is Wrong.UNNAMED:
                unnamed.add(out.client_id or "")
            else:
                yield out.client_id or ""
        if not unnamed:
            return
        # The rule may load more by the row, for which that has to be in a session.
        with self._repository.hold(sorted(unnamed), wait=False) as holding:
            yield from [out.client_id or "" for out, _ in self._compare(holding.clients.values())]
            yield from holding.left

    def _compare(self, clients: Iterable[Client]) -> Iterator["_Seen"]:
        """Yield what is not as the clients' rows wish it."""
        wishes: list[_Wish] = []
        for client in clients:
            try:
                wishes += _wishes(client, self._entries(client), self._of_inactive)
            except Exception as error:  # the host's rule failed: for this one
                yield _Seen(OutOfLine(client.id, None, Wrong.UNNAMED, f"{ForeignError.told(error)}"))
        for store in self._stores if wishes else ():
            found, refused = _read(store, [wish.key for wish in wishes])
            for client_id, key, value in wishes:
                if key in refused:
                    yield _Seen(OutOfLine(client_id, key, Wrong.REFUSED, refused[key]))
                elif key in found and (value is None or found[key] != value):  # None is also what is no text
                    wrong = Wrong.LEFT if value is None else Wrong.STALE
                    yield _Seen(OutOfLine(client_id, key, wrong), value)

    def _look_for_orphans(
        self, owners: "_Owners", store: KeyValueStore, sample: int | None
    ) -> Iterator[Looked]:
        if not isinstance(store, ScannableStore):
            yield Looked(note="The key-value store cannot be walked through: " + _ROWS_ONLY)
            return
        pages: Iterable[Collection[str]] = owners.walk(store)
        if sample is not None:
            pages = batches(chosen(chain.from_iterable(pages), sample), _AT_ONCE)
        for some in pages:
            owned = owners.of(some)
            self._orphans.update((key, None) for key in some if key not in owned)
            yield Looked(entries=len(some))
            yield from self._look_again(beyond=_KEPT)

    def _look_again(self, *, beyond: int = 0) -> Iterator[Looked]:
        """Wait, and look once more at what seems wrong, if that is more than so much."""
        number = len(self._clients) + len(self._orphans)
        if number <= beyond:
            return
        yield Looked(again=number)
        time.sleep(self._min_age.total_seconds())
        clients, self._clients = self._clients, {}
        for client_ids in batches(clients, _HELD_AT_ONCE):
            yield Looked(found=tuple(self._at_clients(client_ids)))
        orphans, self._orphans = self._orphans, {}
        for keys in batches(orphans, _HELD_AT_ONCE):
            if self._owners is not None:
                yield Looked(found=tuple(self._at_orphans(self._owners, keys)))

    def _at_clients(self, client_ids: Collection[str]) -> list[OutOfLine]:
        found, left = list[OutOfLine](), client_ids
        for wait in (False, True):
            if not left:
                break
            self._repository.make_durable()  # what follows a row must not outlive it
            try:
                with self._repository.hold(sorted(left), wait=wait) as holding:
                    found += self._repaired(self._not_shared([*self._compare(holding.clients.values())]))
                    left = holding.left
            except BusyError:
                continue
        return found + [OutOfLine(client_id, None, Wrong.HELD) for client_id in sorted(left)]

    def _not_shared(self, seen: Sequence["_Seen"]) -> list["_Seen"]:
        """Tell that of several owners of an entry none can say what it must be."""
        keys = {out.key for out, _ in seen if out.key is not None and out.wrong in _CAN_BE_REPAIRED}
        owners = self._owners.of(keys) if self._owners is not None else {}
        return [
            each
            if owners.get(each.out.key or "", set()) <= {each.out.client_id}
            else _Seen(replace(each.out, wrong=Wrong.SHARED))
            for each in seen
        ]

    def _at_orphans(self, owners: "_Owners", keys: Collection[str]) -> list[OutOfLine]:
        seen: dict[str, _Seen] = {}
        for store in self._stores:
            present, refused = _read(store, [*keys])
            seen |= {key: _Seen(OutOfLine(None, key, Wrong.ORPHAN)) for key in present}
            for key, cause in refused.items():
                seen[key] = _Seen(OutOfLine(None, key, Wrong.REFUSED, cause))
        ids = owners.ids_in(list(seen))
        owned = owners.of(seen)
        seen = {key: each for key, each in seen.items() if key not in owned}
        client_ids = {ids[key] or "" for key in seen} - {""}
        with ExitStack() as stack:
            there: Collection[str] = ()
            if client_ids:
                self._repository.make_durable()
                try:
                    holding = stack.enter_context(self._repository.hold(sorted(client_ids)))
                    there = {*holding.clients, *holding.left}  # made anew since
                except BusyError:
                    held = {key for key in seen if ids[key] is not None}
                    seen |= {key: _Seen(OutOfLine(None, key, Wrong.HELD)) for key in held}
            nobodys = [each for key, each in seen.items() if ids[key] not in there]
            return [
                replace(out, client_id=ids[out.key or ""]) if out.wrong is Wrong.ORPHAN else out
                for out in self._repaired(nobodys)
            ]

    def _repaired(self, seen: Sequence["_Seen"]) -> list[OutOfLine]:
        """Bring in line what was seen, if that is wished; an entry that several stores have, in all."""
        mend = {each.out.key: each for each in seen if each.out.wrong in _CAN_BE_REPAIRED and each.out.key}
        if not self._repair or not mend:
            return [each.out for each in seen]
        remove = [key for key, each in mend.items() if each.value is None and key]
        overwrite = {key: each.value for key, each in mend.items() if each.value is not None and key}
        refused, cause = frozenset[str](), ""
        try:
            self._kv.apply(remove=remove, overwrite=overwrite)
        except EntriesRefusedError as error:
            refused, cause = error.keys, error.cause
        found = []
        for out, _ in seen:
            if out.key in refused:
                found.append(replace(out, wrong=Wrong.REFUSED, cause=cause))
            else:
                found.append(replace(out, repaired=out.wrong in _CAN_BE_REPAIRED))
        return found


class _Wish(NamedTuple):
    """What an entry must be; a value that is None means that it must not be there."""

    client_id: str
    key: str
    value: bytes | None


class _Seen(NamedTuple):
    """What is out of line, and the value that it must have; None where it must go."""

    out: OutOfLine
    value: bytes | None = None


_CAN_BE_REPAIRED = {Wrong.STALE, Wrong.LEFT, Wrong.ORPHAN}
_ROWS_ONLY = "only rows were walked, and entries of nobody were not looked for."


def _key(template: Template, client: Client) -> str | None:
    columns = {name: client.id if name == "id" else getattr(client.row, name) for name in template.ways}
    return template.key(columns)


def _wishes(client: Client, entries: Entries, of_inactive: SoftDeleteEntries) -> list[_Wish]:
    absent, known = wished(client, entries, of_inactive)
    gone = [_Wish(client.id, key, None) for key in absent]
    return gone + [_Wish(client.id, key, as_bytes(value)) for key, value in known.items()]


def _read(store: ReadableStore, keys: Sequence[str]) -> tuple[Mapping[str, bytes | None], Mapping[str, str]]:
    """Return what is there, and of which keys the store does not tell, and why not."""
    if not keys:
        return {}, {}
    try:
        return store.read(keys), {}
    except EntriesRefusedError as error:
        if len(keys) == 1:
            return {}, {keys[0]: error.cause}
    half = len(keys) // 2
    (found, refused), (others, others_refused) = _read(store, keys[:half]), _read(store, keys[half:])
    return {**found, **others}, {**refused, **others_refused}


class _Owners:
    """Tells whose an entry is by its key.

    By some templates that cannot be told; then a key that one of these may have made is taken for somebody's.
    """

    def __init__(
        self,
        repository: AuditedRepository,
        clients: Callable[[], Iterable[Client]],
        templates: KeyTemplates,
    ) -> None:
        self._repository = repository
        self._walked: list[Template] = []
        self._blind: list[Template] = []
        self._asked: list[Template] = []
        self.notes: list[str] = []
        for template in templates.each:
            cannot = self._cannot(template, clients)
            (self._asked if cannot is None else self._blind).append(template)
            if cannot is None and not any(template.texts):
                cannot = "Any key may be made so."
            elif cannot is None and template.texts[0].startswith(_OWN):
                cannot = "Keys of this package begin so, too."
            if cannot is None:
                self._walked.append(template)
            else:
                self.notes.append(f"{template}: entries of nobody were not looked for. {cannot}")

    def _cannot(self, template: Template, clients: Callable[[], Iterable[Client]]) -> str | None:
        """Tell why the owners of a template's keys cannot be found; all of them would seem to be nobody's."""
        try:
            self._repository.fitting(template.ways[0], [""])
            for _ in range(2):  # a client may go in between
                made = [_key(template, client) for client in islice(clients(), _TRIED)]
                keys = self._values(template, [key for key in made if key is not None])
                if self._owners_by(template, keys).keys() == keys.keys():
                    return None
        except ConfigurationError as error:
            return f"{error}"
        except StoreError:
            raise
        except Exception as error:  # a column that is not loaded with its row
            return f"Its columns cannot be read ({ForeignError.told(error)})."
        return "The database does not find the owners even of those that have one."

    def walk(self, store: ScannableStore) -> Iterator["_Told"]:
        """Iterate over pages of keys that may be a client's; the store may give one twice."""
        for number, template in enumerate(self._walked):
            for page in batches(chain.from_iterable(store.scan(template.texts)), _AT_ONCE):
                keys = self._values(template, (key for key in page if not key.startswith(_OWN)))
                for other in self._walked[:number]:
                    for key in self._values(other, keys):
                        del keys[key]
                yield keys

    def of(self, keys: Collection[str]) -> dict[str, set[str]]:
        """Return key → the ids of the rows that own it, be they inactive; none where that cannot be told."""
        owners: dict[str, set[str]] = {}
        for template in self._asked:
            for key, ids in self._owners_by(template, keys).items():
                owners.setdefault(key, set()).update(ids)
        for template in self._blind:
            for key in keys:
                if template.values(key):
                    owners.setdefault(key, set())
        return owners

    def ids_in(self, keys: Collection[str]) -> dict[str, str | None]:
        """Return key → the id that it tells; None where it may tell something else, or more."""
        told: dict[str, list[str | None]] = {key: [] for key in keys}
        for template in self._asked:
            by_id = {*template.columns} == {"id"}
            for key, values in self._values(template, keys).items():
                told[key] += values if by_id else [None]
        return {key: ids[0] if len(ids) == 1 else None for key, ids in told.items()}

    def _owners_by(self, template: Template, keys: Iterable[str]) -> dict[str, set[str]]:
        values = self._values(template, keys)
        ways, among = template.ways, set[str]().union(*values.values())
        names = ways if "id" in ways else [*ways, "id"]
        id, at = names.index("id"), [names.index(column) for column in template.columns]
        owners: dict[str, set[str]] = {}
        for row in self._repository.owners(names, among):
            made = [row[place] for place in at]
            if None not in made and (key := template.filled(made)) in values:
                owners.setdefault(key, set()).add(row[id] or "")
        return owners

    def _values(self, template: Template, keys: Iterable[str]) -> "_Told":
        if isinstance(keys, _Told) and keys.template is template:
            return keys
        way = template.ways[0]
        told = _Told(template, {key: values for key in keys if (values := template.values(key))})
        every = set[str]().union(*told.values())
        fitting = set(self._repository.fitting(way, [*filter(is_client_id, every)] if way == "id" else every))
        if len(fitting) == len(every):
            return told
        return _Told(template, {key: both for key, values in told.items() if (both := values & fitting)})


class _Told(dict[str, set[str]]):
    """Key → what rows there can be may have had in the template's first way, to make that key.

    Keys that none can have made are left out.
    """

    def __init__(self, template: Template, values: Mapping[str, set[str]]) -> None:
        super().__init__(values)
        self.template = template
