package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// podInit is process 1 of a pod whose containers share a PID namespace: it reaps the orphans, and ends, and with it
// the namespace, on SIGTERM or SIGINT.
func podInit() error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range signals {
		if s != unix.SIGCHLD {
			return nil
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return nil
}
