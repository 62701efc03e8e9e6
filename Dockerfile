# One image for both roles: `fedmq coordinator` and `fedmq participant`.
FROM python:3.12-slim
WORKDIR /fedmq
ENV PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY broker_config broker_config
COPY coordinator coordinator
COPY participant participant
COPY studies studies
COPY fedmq fedmq
RUN pip install --no-cache-dir ".[keras-cpu]"
COPY examples examples
RUN useradd --create-home fedmq && mkdir -p /data && chown fedmq /data
USER fedmq
VOLUME /data
ENTRYPOINT ["fedmq"]
CMD ["--help"]
