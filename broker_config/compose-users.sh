#!/bin/sh
# Make the users of docker-compose.yml on the node RABBITMQ_NODENAME, or give them their passwords and rights again.
#
# The expressions are those of broker_config/rights.py for the prefix `fedmq` and, for `participant`, for any id. A test
# compares them. The passwords go to rabbitmqctl by its standard input, so the list of processes does not show them.
# RabbitMQ 4 reads it only if nothing stands before or behind `add_user NAME`.
set -eu

# user USER PASSWORD CONFIGURE WRITE READ
user() {
    printf '%s\n' "$2" | rabbitmqctl add_user "$1" 2>/dev/null || printf '%s\n' "$2" | rabbitmqctl change_password "$1"
    rabbitmqctl set_permissions "$1" "$3" "$4" "$5"
}

key='[0-9a-f]{32}'
id='[A-Za-z0-9][A-Za-z0-9._-]{0,63}'

user coordinator "$FEDMQ_COORDINATOR_PASSWORD" \
    '^fedmq\..*' \
    '^(amq\.default|fedmq\..*)$' \
    '^fedmq\..*'
user participant "$FEDMQ_PARTICIPANT_PASSWORD" \
    "^fedmq\.(participant\.$id|payload\.$id\.$key)\$" \
    "^fedmq\.(updates|control|up\.$id|payload\.$id\.$key)\$" \
    "^fedmq\.(models|participant\.$id|up\.$id|payload\.$id\.$key)\$"
