# The demo in a container, on CPUs: docker build --tag innervision . && docker run --name demo innervision
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir uv && uv pip install --system --no-cache --torch-backend cpu '/source[gen]'
RUN useradd --create-home innervision
USER innervision
WORKDIR /home/innervision
ENTRYPOINT ["innervision"]
CMD ["demo"]
