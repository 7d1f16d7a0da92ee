"""Servers for tests that need no special one."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.unit.server.builders import Client, classifier_model, client_of, language_model


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    """A server with a tiny language model."""
    async with client_of(language_model()) as found:
        yield found


@pytest_asyncio.fixture
async def classifier() -> AsyncIterator[Client]:
    """A server with a tiny classifier."""
    async with client_of(classifier_model()) as found:
        yield found
