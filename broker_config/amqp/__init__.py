"""The transport over RabbitMQ. This is the only room that imports pika."""
