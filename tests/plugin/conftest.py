import pytest

from tests.fixtures.exported import ExportHome, build_export_home


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> ExportHome:
    return build_export_home(tmp_path_factory.mktemp("home"))
