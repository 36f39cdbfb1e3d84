"""The model on LitServe: FOLDER PORT."""

import sys

import litserve
from classifier import Classifier


class Digits(litserve.LitAPI):
    """One worker."""

    def setup(self, device):
        self.classifier = Classifier(sys.argv[1])

    def decode_request(self, request):
        return request["input"]

    def predict(self, image):
        return self.classifier(image)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Digits(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
