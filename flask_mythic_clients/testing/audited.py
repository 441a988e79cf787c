"""What an audit asks a repository."""
# ruff: noqa: D102 - the name of a test is its docstring

from ..ports import AuditedRepository, ClientRepository
from .fixtures import AddClient, RepositoryFixtures


class AuditedRepositoryContract(RepositoryFixtures):
    """What `sample`, `fitting` and `owners` must do; the fixtures are those of the rest."""

    def test_a_sample_has_each_client_once_at_the_most(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        for client_id in self.ids:
            add_client(client_id, status=client_id == self.ids[0])
        every = {client.id: client.active for client in repository.clients()}
        seen = set[str]()
        for _ in range(100):
            two = {client.id: client.active for client in _audited(repository).sample(2)}
            assert len(two) == 2
            assert two.items() <= every.items()
            seen |= two.keys()
        assert seen == set(self.ids)
        assert {client.id: client.active for client in _audited(repository).sample(9)} == every

    def test_owners_are_found_to_the_letter(
        self, repository: ClientRepository, add_client: AddClient
    ) -> None:
        acme, acme2, zeta = self.ids
        add_client(acme, name="Zoë's 🦊")
        add_client(acme2, status=False, name=None)
        owners = _audited(repository).owners
        assert set(owners(["id"], [acme, acme2, zeta])) == {(acme,), (acme2,)}
        assert set(owners(["id", "name"], [acme2, acme])) == {(acme, "Zoë's 🦊"), (acme2, None)}
        assert set(owners(["name", "id"], ["Zoë's 🦊", "x" * 300])) == {("Zoë's 🦊", acme)}
        assert set(owners(["id"], self.lookalikes)) <= {(id,) for id in self.ids}
        assert set(owners(["name"], ["nobody's"])) == set()
        assert set(owners(["id"], [])) == set()

    def test_what_a_row_has_fits(self, repository: ClientRepository) -> None:
        fitting = _audited(repository).fitting
        assert sorted(fitting("id", self.ids)) == sorted(self.ids)
        assert list(fitting("name", ["any text: 🦊"])) == ["any text: 🦊"]


def _audited(repository: ClientRepository) -> AuditedRepository:
    assert isinstance(repository, AuditedRepository)
    return repository
