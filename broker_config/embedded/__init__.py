"""The transport without RabbitMQ. This is the only room that pretends to be a broker."""
