"""The networks people know, trained on our derivatives, with `torch.autograd` beside them as the reference.

settings      what a run is told: epochs, learning rate, seed, device …; the errors of training
data          the four points of XOR, scikit-learn's handwritten digits, MNIST's IDX files
networks      XOR's two hidden units, a convolutional network, recurrent ones
problems      network, data, loss, how an answer is judged
optimizers    PyTorch's, and the update written by hand
engines       loss and gradients of a network by `pullback`
reference     the same by `torch.autograd`, and the comparison
runs          the one training loop, for any engine
checkpoints   a run as a file, from which it goes on as if it had never stopped
files         files that are whole or not there
interruption  Ctrl-C while a network trains
studies       the same run for many seeds, and what was recorded of it
curves        losses and accuracies as CSV and PNG
console       what the command line says of all this
commands      `pullback train xor | cnn | rnn`
"""
