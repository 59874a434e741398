"""The conformance kit under its public name: `pytest_plugins = ["server.testing_provider"]`."""

import pytest

pytest.register_assert_rewrite("server.testing.provider", "server.testing.recall")

from .testing.provider import ProviderContract, provider_case  # noqa: E402
from .testing.stage import ProviderCase  # noqa: E402

__all__ = ["ProviderCase", "ProviderContract", "provider_case"]
