package server

import (
	"context"
	"os"
	"sync/atomic"
	"time"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/crilog"
	"criserver/pkg/sandbox/monitor/pump"
	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/specfile"
)

// consoleWait bounds how long the runtime takes to hand out the terminal of a process that it has started.
const consoleWait = 10 * time.Second

// stdio are this side's ends of a container's streams.
type stdio struct {
	// outputs are stdout and stderr, or the terminal's master alone.
	outputs []*os.File
	// input is what those who attach write to: the write end of stdin, or the master; nil if it is /dev/null.
	input    *os.File
	terminal bool
}

func (s *stdio) close() {
	monitor.CloseFiles(s.outputs)
	if !s.terminal {
		monitor.CloseFiles([]*os.File{s.input})
	}
}

// theirs are the container's ends, or the socket for its terminal.
type theirs struct {
	runtime.Stdio
	console *monitor.Console
}

func (t *theirs) close() {
	monitor.CloseFiles([]*os.File{t.Stdin, t.Stdout, t.Stderr})
	if t.console != nil {
		_ = t.console.Close()
	}
}

// openStdio makes both ends. After an error it has closed them.
func openStdio(p monitor.CreateRequest) (ours stdio, container theirs, err error) {
	defer func() {
		if err != nil {
			ours.close()
			container.close()
		}
	}()
	if ours.terminal, err = wantsTerminal(p.Bundle); err != nil {
		return ours, container, err
	}
	if ours.terminal {
		if container.console, err = monitor.NewConsole(); err != nil {
			return ours, container, err
		}
		container.Stdio.Console = container.console.Socket
		return ours, container, nil
	}
	if p.Stdin {
		container.Stdin, ours.input, err = runtime.NewPipe("input", runtime.WriteEnd)
	} else {
		container.Stdin, err = os.Open(os.DevNull)
	}
	if err != nil {
		return ours, container, err
	}
	for _, end := range []**os.File{&container.Stdout, &container.Stderr} {
		r, w, err := runtime.NewPipe("output", runtime.ReadEnd)
		if err != nil {
			return ours, container, err
		}
		ours.outputs, *end = append(ours.outputs, r), w
	}
	return ours, container, nil
}

// receive takes the terminal, if there is to be one, once the runtime has made it.
func (s *stdio) receive(ctx context.Context, container theirs) error {
	if !s.terminal {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, consoleWait)
	defer cancel()
	_ = container.console.Socket.Close() // the runtime has its own
	master, err := container.console.Receive(ctx)
	if err != nil {
		return err
	}
	s.outputs, s.input = []*os.File{master}, master
	return nil
}

// wantsTerminal reads no more of the specification than that.
func wantsTerminal(bundle string) (bool, error) {
	var spec struct {
		Process struct {
			Terminal bool `json:"terminal"`
		} `json:"process"`
	}
	err := specfile.Decode(bundle, &spec)
	return spec.Process.Terminal, err
}

// losses is what the watchers were told of lost output.
type losses struct {
	told atomic.Int64
	due  atomic.Bool // they will be told
}

// lossEvery is how often watchers are told of output that gets lost.
const lossEvery = time.Second

// report tells the watchers, by changed, of output that the log has lost or dropped since they were told last.
func (l *losses) report(log *crilog.Log, changed func()) {
	if log.Lost()+log.Dropped() == l.told.Load() || !l.due.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(lossEvery, func() {
		l.due.Store(false)
		l.told.Store(log.Lost() + log.Dropped())
		changed()
	})
}

// pumpAll begins to read the outputs. It calls changed when some are lost.
func (c *container) pumpAll(changed func()) {
	for i, r := range c.io.outputs {
		stream := crilog.Stream(i)
		c.pumps.Go(func() {
			pump.Run(r, func(at time.Time, data []byte) {
				c.log.Write(stream, at, data)
				c.losses.report(c.log, changed)
				c.clients.send(stream, data)
			})
			c.log.Flush(stream, time.Now())
		})
	}
}
