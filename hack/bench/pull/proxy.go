package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// proxy passes connections on to a registry. What comes from there is late and slow, for each connection alone, as
// over a long way: who opens more connections gets more.
type proxy struct {
	registry string
	rate     int // bytes a second
	latency  time.Duration
}

// run prints the address and serves until the context ends.
func (p *proxy) run(ctx context.Context) error {
	if p.registry == "" || p.rate <= 0 {
		return errors.New("proxy: -registry and a rate are needed")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println(l.Addr())
	for {
		client, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go p.serve(ctx, client)
	}
}

func (p *proxy) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	time.Sleep(p.latency) // of the handshake
	server, err := new(net.Dialer).DialContext(ctx, "tcp", p.registry)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		server.Close() // the client is gone, and the copy below ends
	}()
	p.back(client, server)
}

// chunk is bytes, and when they are to arrive.
type chunk struct {
	data []byte
	due  time.Time
}

const (
	chunkSize = 32 << 10
	onTheWay  = 64 // chunks; more than rate × latency
)

// back copies from the server to the client until one of them ends.
func (p *proxy) back(client io.Writer, server io.ReadCloser) {
	way := make(chan chunk, onTheWay)
	go func() {
		defer close(way)
		for {
			data := make([]byte, chunkSize)
			n, err := server.Read(data)
			if n > 0 {
				way <- chunk{data[:n], time.Now().Add(p.latency)}
			}
			if err != nil {
				return
			}
		}
	}()
	var free time.Time // when the line can take the next chunk
	for c := range way {
		if free.Before(c.due) {
			free = c.due
		}
		free = free.Add(time.Duration(len(c.data)) * time.Second / time.Duration(p.rate))
		time.Sleep(time.Until(free))
		if _, err := client.Write(c.data); err != nil {
			server.Close()
			for range way { // until the reader has seen it
			}
			return
		}
	}
}
