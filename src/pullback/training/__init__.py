"""The networks people know, trained on our derivatives, with `torch.autograd` beside them as the reference.

settings    what a run is told: epochs, learning rate, seed, device …; the errors of training
data        the four points of XOR, scikit-learn's handwritten digits, MNIST's IDX files
problems    XOR and the digits: network, loss, update, how an answer is judged
engines     loss and gradients of a network by `pullback`
reference   the same by `torch.autograd`, and the comparison
runs        the one training loop, for either engine
studies     the same run for many seeds, and what was recorded of it
curves      losses and accuracies as CSV and PNG
"""
