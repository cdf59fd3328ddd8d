import pytest

from ops.store.errors import OpsError
from ops.store.remote_name import parse_remote

INLINE = ":s3,provider=AWS,access_key_id=AKIA1234567,secret_access_key='s3cr3t/value':bucket/run"


@pytest.mark.parametrize("text", ["gdrive:runs/logs_c", "my drive:x", ":local:/mnt/a b/c", INLINE])
def test_names_that_rclone_takes_are_taken(text):
    assert parse_remote(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        'gdrive:a"; touch /tmp/x; "',
        "gdrive:$(touch /tmp/x)",
        "gdrive:`id`",
        "gdrive:a\nb",
        "gdrive:a\\b",
        "gdrive:../other",
        "gdrive:runs/../../other",
        "-gdrive:x",
        "--config=x:y",
        "",
        ":",
        ":local:",
        "gdrive:" + "x" * 2000,
    ],
)
def test_names_that_a_shell_would_read_or_that_leave_their_folder_are_refused(text):
    with pytest.raises(OpsError):
        parse_remote(text)


def test_a_path_without_a_remote_is_refused_with_the_name_to_give():
    with pytest.raises(OpsError, match=r"for a folder write :local:/mnt/disk"):
        parse_remote("/mnt/disk")


def test_a_relative_local_remote_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_remote(":local:runs/c").text == f":local:{tmp_path}/runs/c"


def test_credentials_of_a_connection_string_are_masked_everywhere():
    remote = parse_remote(INLINE)
    message = remote.scrub(f"cannot reach {INLINE} with AKIA1234567 and s3cr3t/value")
    for shown in (str(remote), repr(remote), message):
        assert "AKIA1234567" not in shown
        assert "s3cr3t" not in shown
    assert str(remote) == ":s3,***:bucket/run"


def test_a_refused_connection_string_is_not_repeated():
    with pytest.raises(OpsError) as caught:
        parse_remote(':s3,secret_access_key="abcdef$":bucket')
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ('token = {"access_token":"ya29.abc","refresh_token":"1//xyz"}', "1//xyz"),
        (r"{\"access_token\":\"ya29.abc\"}", "ya29"),
        ("oauth2: client_secret=GOCSPX-abc failed", "GOCSPX"),
        ("401 Authorization: Bearer ya29.abc", "ya29"),
        ("https://user:hunter2@host/x", "hunter2"),
        ("config at /home/me/.config/rclone/rclone.conf", "/home/me"),
    ],
)
def test_tokens_in_messages_of_rclone_are_masked(message, secret):
    scrubbed = parse_remote("gdrive:x").scrub(message)
    assert secret not in scrubbed
    assert "***" in scrubbed


def test_credentials_from_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("RCLONE_S3_SECRET_ACCESS_KEY", "from-the-environment")
    assert "from-the" not in parse_remote("s3:x").scrub("bad key from-the-environment")
