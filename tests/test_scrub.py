"""Secrets go, everything else stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebridge.model import (
    GatewayCall,
    Sighting,
    Source,
    Tags,
    ToolCall,
)
from tracebridge.scrub import scrub_call, scrub_sighting, scrub_text

# None of these was ever given out; each has the shape of its vendor's.
KEYS = {
    "anthropic": "sk-ant-api03-Zk3vB9qLmN4xT7wYp2Rs5Uc8Ef1Gh6Jk0Ab-XyZ_012345AA",
    "openai": "sk-proj-T3BlbkFJabcdEFGH1234ijklMNOP5678qrstUVWX",
    "openai_old": "sk-abcdefghijklmnopqrstT3BlbkFJuvwxyzabcdefghij",
    "openrouter": "sk-or-v1-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "deepseek": "sk-0123456789abcdef0123456789abcdef",
    "langfuse": "sk-lf-01234567-89ab-cdef-0123-456789abcdef",
    "stripe": "sk_live_51AbCdEfGhIjKlMnOpQrStUv",
    "stripe_webhook": "whsec_AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "groq": "gsk_abcdEFGH1234ijklMNOP5678qrstUVWX9012yzab",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "google_oauth": "ya29.a0AfH6SMBx1234567890abcdefghij",
    "google_client": "GOCSPX-abcdefghijklmnopqrstuvwx1234",
    "github": "ghp_0123456789abcdefABCDEF0123456789abcd",
    "github_fine": "github_pat_11ABCDEFG0abcdefghij_0123456789abcdefghijklmnopqrstuvwxyz",
    "gitlab": "glpat-AbCdEf123456GhIjKl78",
    "slack": "xoxb-123456789012-123456789012-AbCdEfGhIjKlMnOpQrStUvWx",
    "hugging_face": "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "npm": "npm_0123456789abcdefABCDEF0123456789abcd",
    "pypi": "pypi-AgEIcHlwaS5vcmcCJDAxMjM0NTY3LTg5YWItY2RlZi0wMTIz",
    "replicate": "r8_0123456789abcdefABCDEF0123456789abcde",
    "xai": "xai-0123456789abcdefABCDEF0123456789",
    "sendgrid": "SG.AbCdEfGhIjKlMnOpQrStUv.0123456789abcdefABCDEF0123456789abcdefABCDE",
    "twilio": "SK0123456789abcdef0123456789abcdef",
    "mailgun": "key-0123456789abcdef0123456789abcdef",
    "databricks": "dapi0123456789abcdef0123456789abcdef",
    "digital_ocean": "dop_v1_" + "0123456789abcdef" * 4,
    "vault": "hvs.CAESIAbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "grafana": "glsa_AbCdEfGhIjKlMnOpQrStUvWxYz012345_0a1b2c3d",
    "telegram": "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1",
    "age": "AGE-SECRET-KEY-1QQPQYZ0123456789QPZRY9X8GF2TVDW0S3JN54KHCE6",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
}

SURROUNDINGS = {
    "alone": "{}",
    "in a sentence": "Use {} for now.",
    "in quotes": 'client = Client("{}")',
    "in a dump of an environment": "PATH=/bin\nSOME_VARIABLE={}\nHOME=/root\n",
    "behind an escaped new line": '{{"stdout":"/bin\\n{}\\nHOME=/root"}}',
    "in JSON": '{{"value":"{}","n":1}}',
    "in JSON in JSON": '{{"text":"{{\\"value\\":\\"{}\\"}}"}}',
    "in a diff": "-old\n+{}\n context",
    "in a URL's path": "https://example.com/v1/{}/x",
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_of_known_shape_go_wherever_they_stand(key, surroundings):
    """What surrounds them stays."""
    before, after = surroundings.format("\0").split("\0")
    text = scrub_text(before + key + after)
    assert key not in text
    assert key[8:-8] not in text
    assert text.startswith(before)
    assert text.endswith(after)


PEM = """-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,0123456789ABCDEF0123456789ABCDEF

MIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyuvBjM9OiZ1BjP5CE6wKwRlJb1cTj5UuR2
vBjM9OiZ1BjP5CE6wKwRlJb1cTj5UuR2MIIEpAIBAAKCAQEA3Tz2mr7SZiAMfQyu
R2mr7SZiAMf==
-----END RSA PRIVATE KEY-----"""
NUMBERED = "\n".join(f"{n:6}\t{line}" for n, line in enumerate(PEM.split("\n"), 1))
LINES = PEM.split("\n")


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("RSA ", ""),
        PEM.replace("RSA ", "OPENSSH "),
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", "\\n"),
        json.dumps({"stdout": json.dumps({"key": PEM})}),
        PEM.replace("\n", "\n-"),
        PEM.replace("\n", "\n+"),
        NUMBERED,
        NUMBERED.replace("\t", "→"),
        # Cut behind, in the middle and before.
        "\n".join(LINES[:-1]),
        "\n".join(LINES[:5]),
        "\n".join(LINES[:5])[:-20],
        "\n".join(LINES[5:]),
        json.dumps("\n".join(LINES[5:])),
        json.dumps("\n".join(LINES[:6])),
    ],
)
def test_private_keys_go_also_when_they_are_cut(text):
    """In all the ways in which a tool shows a file."""
    scrubbed = scrub_text("before\n" + text + "\nafter the key, some text.")
    for secret in ("MIIEpAIBAAKCAQEA3Tz2", "vBjM9OiZ1BjP5CE6wKwR", "R2mr7SZiAMf"):
        assert secret not in scrubbed
    assert scrubbed.startswith("before\n")
    assert scrubbed.endswith("some text.")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('{"stdout":"ANTHROPIC_API_KEY=sk-fake\\nPATH=/bin"}', "sk-fake"),
        ('{"stdout":"A=1\\nDB_PASSWORD=hunter2\\nPATH=/bin"}', "hunter2"),
        ('curl -H "Authorization: Bearer abc.def.ghi" https://x', "abc.def.ghi"),
        ("curl -H 'Authorization: Basic dXNlcjpwYXNz' https://x", "dXNlcjpwYXNz"),
        ("curl -H 'x-api-key: plainword' https://x", "plainword"),
        ("curl -u admin:hunter2 https://x", "hunter2"),
        ("curl --user 'admin:hunter2' https://x", "hunter2"),
        ('{"command":"curl -H \\"Authorization: Bearer abcd\\" https://x"}', "abcd"),
        ('{"headers":{"Authorization":"Bearer abcdefgh"}}', "abcdefgh"),
        ('{\\"authorization\\": \\"Token abcdefgh\\"}', "abcdefgh"),
        ("authorization: AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256"),
        ("Set-Cookie: session=abcdefgh; Path=/", "abcdefgh"),
        ("Cookie: a=b; session=abcdefgh", "abcdefgh"),
        ("postgres://app:p4ss!w0rd@db:5432/app", "p4ss!w0rd"),
        ("redis://:hunter@cache:6379/0", "hunter"),
        ('{"url":"amqp://guest:hunter@mq"}', "hunter"),
        ("git clone https://oauth2:abcdef@gitlab.example/x.git", "abcdef"),
        ("https://x/callback?access_token=abcdef&state=1", "abcdef"),
        ("https://x/blob?sv=2020&sig=abcdef%3D&se=1", "abcdef"),
        ("https://hooks.slack.com/services/T00000000/B00000000/XXXXabcdefgh", "XXXXabcdefgh"),
        ("export TOKEN=abcdefgh", "abcdefgh"),
        ("export TOKEN='abcdefgh'", "abcdefgh"),
        ('set -x SECRET_KEY "abcdefgh"; SECRET_KEY="ijklmnop"', "ijklmnop"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "wJalrXUtnFEMI"),
        ("DJANGO_SECRET_KEY_BASE=abc$def(ghi", "def(ghi"),
        ("STRIPE_KEY=abcdefgh12345678", "abcdefgh12345678"),
        ("POSTGRES_PASSWORD=correcthorse\n", "correcthorse"),
        ('password = "correct horse battery"', "horse"),
        ("password: 'it is \\' here'", "here"),
        ("db:\n  password: s3cr3t-word\n", "s3cr3t-word"),
        ('"clientSecret": "abcdefgh"', "abcdefgh"),
        ('"client_secret": "abcdefgh"', "abcdefgh"),
        ("'api_key' => 'abcdefgh'", "abcdefgh"),
        ('config["api_key"] = "abcdefgh"', "abcdefgh"),
        ('token := "abcdefgh"', "abcdefgh"),
        ("//registry.example/:_authToken=abcdef12", "abcdef12"),
        ("machine x.example login me password hunter", "hunter"),
        ("Server=db;User=sa;Password=hunter;Database=x", "hunter"),
        ("DefaultEndpointsProtocol=https;AccountKey=abcd1234==;", "abcd1234"),
        ("mysql --password hunter22 -u root", "hunter22"),
        ("deploy --api-key abcdefgh --dry-run", "abcdefgh"),
        ("deploy --token=abcdefgh1 --dry-run", "abcdefgh1"),
        ("<password>hunter</password>", "hunter"),
        ("+API_TOKEN=abcdefgh\n-API_TOKEN=ijklmnop", "ijklmnop"),
        ("PASSWORD=123456", "123456"),
        ("sk-ant-api03-Zk3vB9qLmN4xT7wYp2Rs5 cut", "Zk3vB9qLmN4xT7wYp2Rs5"),
    ],
)
def test_secrets_go_by_what_is_said_of_them(text, secret):
    """Headers, URLs, environments, settings files and command lines."""
    assert secret not in scrub_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_tokens=1000",
        "max_tokens: 200000, temperature=0.5",
        "token_count: 5",
        '{"input_tokens":123456,"output_tokens":7,"cache_read_input_tokens":1000000}',
        "tokens = 1_000_000",
        "tokens: 12.5k",
        "def get_token(self):",
        "def login(self, password: str, token: Optional[str] = None) -> None:",
        "interface Login { password: string; token?: string }",
        'password = os.environ["X"]',
        "password = os.environ2.get('X')",
        "API_KEY=os.environ['X']",
        "SECRET_KEY = get_random_secret_key()",
        "SECRET=load_secret(1)",
        "token = response.json()['x']",
        "const token = req.headers.authorization;",
        "self.token = token",
        "api_key=settings.api_key,",
        "password: process.env.DB_PASSWORD",
        "export TOKEN=$(cat token.txt)",
        'export TOKEN="$GITHUB_TOKEN"',
        "token: ${{ secrets.GITHUB_TOKEN }}",
        "curl -H 'Authorization: Bearer $TOKEN'",
        'curl -H "Authorization: Bearer ${TOKEN}"',
        "Authorization: Bearer <your token>",
        "postgres://app:${PASSWORD}@db/app",
        "API_KEY=<your-key>",
        "API_KEY=your_key_here",
        'TOKEN="***"',
        "PASSWORD=xxxxxxxx",
        '{"type":"string","name":"password"}',
        '{"password":{"type":"string"}}',
        '{"token":null,"secret":false}',
        "fetch(url, { credentials: 'same-origin' })",
        "secrets: inherit",
        'input("Password: ") + suffix + "x"',
        'print("token: " + token + " done")',
        'f"token={token}"',
        "eos_token='</s>', pad_token=\"[PAD]\"",
        "if token == other: pass",
        "the secret: never give up on tests, the password: none needed",
        "Basic understanding of bearer authentication and token validation",
        "token bucket, basic internationalization.",
        "3f1c2e9a7b5d4c6e8f0a1b2c3d4e5f6a7b8c9d0e",
        "commit 3f1c2e9 Merge token handling into main",
        "2e23f0a0-0000-4000-8000-000000000001",
        "toolu_01AbCdEfGhIjKlMnOpQrStUv msg_01XyZ req_011CTabcdefghijkl",
        "00-d7c487cd7106e0dd92e7bece2e8dd15f-d4f74fd32f47b44c-01",
        "/home/me/.config/secrets/token.txt:12: no such file",
        "https://example.com:8080/a@b?page=2#token",
        "git@github.com:me/token-service.git",
        "TOKEN_URL=https://example.com/oauth",
        "PASSWORD_FILE=/run/secrets/db",
        "sk-fading-circle-spinner-wrapper",
        "sk_learn_feature_selection",
        "npm_config_registry_location",
        "hf_hub_download_with_progress_bar",
        'if "-----BEGIN RSA PRIVATE KEY-----" in text:',
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
        "-----BEGIN CERTIFICATE-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END CERTIFICATE-----",
        "tokenizer: 'gpt2', tokenizer_config=abc123",
        "auth.py:12: password check failed",
        "Überraschung: geheim ≠ öffentlich 🔑",
    ],
)
def test_other_texts_stay_as_they_are(text):
    """Code that handles secrets holds none; ids and counts are no secrets."""
    assert scrub_text(text) == text


def test_an_image_stays_as_it_is():
    """A long run of base64 is not a key."""
    run = "".join(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[i * 37 % 64]
        for i in range(50_000)
    )
    text = json.dumps({"type": "base64", "media_type": "image/png", "data": run})
    assert scrub_text(text) == text


PIECES = [
    *KEYS.values(),
    *LINES,
    *("token", "password", "API_KEY", "=", ":", " ", '"', "'", "\\", "\n", "\\n", "-----", "@"),
    *("://", "Bearer ", "abc123def456", "[secret removed]", "Authorization: ", "$", "(", "a", "--"),
    *("cookie", "curl -u ", "?sig=", "&", ";", "<password>", "</", "eyJ", "sk-", "_KEY="),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join))
def test_a_second_time_changes_nothing(text):
    """Marks are no secrets."""
    once = scrub_text(text)
    assert scrub_text(once) == once


ADVERSARIES = [
    "a",
    "a.",
    "a-",
    "A_",
    "-",
    "=",
    " ",
    "\\",
    '"',
    "sk-",
    "sk-a-",
    "eyJ",
    "eyJaaaaaaaa.",
    "://",
    "a://b:",
    "a://",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----END PRIVATE KEY-----",
    "A" * 64 + "\n",
    "A" * 64 + "\n-----END PRIVATE KEY-----",
    "token",
    'token="',
    "token='token=",
    "token=",
    "token ",
    "authorization",
    "authorization: ",
    "bearer ",
    "bearer a",
    "cookie: a=",
    "curl ",
    "curl -u a",
    "login a password ",
    "--a",
    "--password ",
    "<password>",
    "?a",
    "?token=",
    ";pwd=",
    "A_KEY=",
    "A_KEY=a",
    "SG.",
    "hf_",
    "npm_aaaa",
    "xoxb-",
    "0",
    "123456789:AA",
    "\n",
    "1\t",
    "\\n",
    "aaaaaaaaaaaaaaaa\n",
    "secret_key_base",
    "token_key_base_old=",
    "é",
    "hooks.slack.com/services/T",
]


def test_a_megabyte_of_malice_is_scrubbed_too():
    """No text makes a pattern go back over what it has read, again and again."""
    script = (
        "import json, sys\n"
        "from tracebridge.scrub import scrub_text\n"
        "for piece in json.load(sys.stdin):\n"
        "    print(repr(piece), flush=True)\n"
        "    scrub_text(piece * (1_000_000 // len(piece)))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(ADVERSARIES).encode(),
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )


def test_records_are_scrubbed_in_every_text():
    """Also metadata and headers; what is clean is the same object."""
    key = KEYS["openai"]
    part = ToolCall(key="t", name="Bash", input=f"echo {key}", output=key, error_message=key)
    sighting = Sighting(agent="a", session_id="s", source=Source.HOOK, time_ns=1, part=part)
    tags = Tags(customer_id="c", metadata=(("team", key), ("colour", "blue")))
    call = GatewayCall(
        call_id="1",
        gateway="g",
        method="POST",
        path=f"/v1?key={KEYS['google']}",
        start_ns=1,
        end_ns=2,
        error_message=f"bad key {key}",
        request_headers={"anthropic-beta": key},
        response_headers={"request-id": "req_1", "x": key},
    )
    assert key not in repr(scrub_sighting(sighting))
    scrubbed = scrub_sighting(
        Sighting(agent="a", session_id="s", source=Source.HOOK, time_ns=1, part=tags)
    )
    assert scrubbed.part.metadata == (("team", "[api-key removed]"), ("colour", "blue"))
    assert key not in repr(scrub_call(call))
    assert KEYS["google"] not in repr(scrub_call(call))
    assert scrub_call(call).response_headers["request-id"] == "req_1"
    clean = ToolCall(key="t", name="Bash", input="ls")
    same = Sighting(agent="a", session_id="s", source=Source.HOOK, time_ns=1, part=clean)
    assert scrub_sighting(same).part is clean
