"""Private RabbitMQ nodes. This is the only room that starts an Erlang process."""
