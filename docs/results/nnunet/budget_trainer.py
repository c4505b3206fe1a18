"""nnU-Net's own trainer, with as many updates as fit into a processor time; nnU-Net finds it by nnUNet_extTrainer.

SECONDS_OF_TRAINING is the time of the training process, on one thread; augmentation in another process is not counted.
"""

from __future__ import annotations

import os
import time

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

TIMED = 12  # updates that are timed, after two that are not; they count as training


class nnUNetTrainerBudget(nnUNetTrainer):  # type: ignore[misc]  # noqa: N801 - nnU-Net finds trainers by names that begin like this
    """Epochs of 50 updates (and 10 for its own validation, as 250 and 50 are), so that a budget is met closely."""

    def run_training(self) -> None:
        """Time some updates, decide the number of epochs and the schedule, and train as ever."""
        torch.set_num_threads(1)
        began = time.process_time()
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 50, 10
        self.on_train_start()
        self.network.train()
        for done in range(TIMED + 2):
            if done == 2:
                started = time.process_time()
            self.train_step(next(self.dataloader_train))
        update = (time.process_time() - started) / TIMED
        left = float(os.environ["SECONDS_OF_TRAINING"]) - (time.process_time() - began)
        # A step of the validation is a forward pass, about a third of an update.
        self.num_epochs = max(1, int(left / (update * (self.num_iterations_per_epoch + 10 / 3))))
        self.lr_scheduler = PolyLRScheduler(self.optimizer, self.initial_lr, self.num_epochs)
        self.print_to_log_file(f"{update:.2f} s an update: {self.num_epochs} epochs of 50")
        for _ in range(self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = [self.train_step(next(self.dataloader_train)) for _ in range(self.num_iterations_per_epoch)]
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                found = [
                    self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
                ]
                self.on_validation_epoch_end(found)
            self.on_epoch_end()
        self.on_train_end()
        self.print_to_log_file(f"{time.process_time() - began:.0f} s in all")
