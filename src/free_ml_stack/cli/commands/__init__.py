"""All commands, in the order of a project's workflow, with their functions and arguments."""

from free_ml_stack.cli.command import Command
from free_ml_stack.cli.commands import delivery, launching, training, upkeep
from free_ml_stack.project.arguments import add_train_arguments

COMMANDS = (
    Command("doctor", upkeep.doctor, upkeep.add_doctor_arguments),
    Command("info", upkeep.info, upkeep.add_info_arguments),
    Command("data", training.data, training.add_data_arguments),
    Command("train", training.train, add_train_arguments),
    Command("sweep", training.sweep, training.add_sweep_arguments),
    Command("publish", delivery.publish, delivery.add_publish_arguments),
    Command("deploy", delivery.deploy, delivery.add_deploy_arguments),
    Command("serve", delivery.serve, delivery.add_serve_arguments),
    Command("predict", delivery.predict, delivery.add_predict_arguments),
    Command("monitor", delivery.monitor),
    Command("sync", upkeep.sync),
    Command("storage", upkeep.storage, upkeep.add_storage_arguments),
    Command("remote", upkeep.remote, upkeep.add_remote_arguments),
    Command("launch", launching.launch, launching.add_launch_arguments),
)
