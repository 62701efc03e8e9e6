#!/usr/bin/env bash
# Install Debian's rabbitmq-server for the tests. The system's own node is not started: the tests start private ones.
set -u
installed() { ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin >/dev/null 2>&1; }
if installed || command -v rabbitmq-server >/dev/null 2>&1; then exit 0; fi
as_root=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root="sudo -n"; else
        echo "fedmq: RabbitMQ is missing, and this user may not install it. Tests that need a broker will skip." >&2
        exit 0
    fi
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "fedmq: RabbitMQ is missing, and there is no apt-get here. Tests that need a broker will skip." >&2
    exit 0
fi
echo "fedmq: installing rabbitmq-server for the integration tests" >&2
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
$as_root apt-get update -qq >/dev/null &&
    $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends rabbitmq-server >/dev/null
if ! installed; then
    echo "fedmq: rabbitmq-server could not be installed. Tests that need a broker will skip (in CI they fail)." >&2
fi
