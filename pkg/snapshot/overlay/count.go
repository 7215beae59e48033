package overlay

import (
	"context"
	"fmt"
	"time"

	"criserver/pkg/snapshot"
	"criserver/pkg/waiting"
)

// usage reads a project's count. It is one system call: see package quota.
func (p *projects) usage(id uint32) (snapshot.Usage, error) {
	u, _, err := p.fs.Get(id)
	return snapshot.Usage{Bytes: u.Bytes, Inodes: u.Inodes}, err
}

// total adds up the projects of all snapshots. They are read in the background, at most once in totalEvery; the call
// waits for that, but not for long, and then returns the sum of the round before.
func (p *projects) total(ctx context.Context) (snapshot.Measurement, error) {
	if p == nil {
		return snapshot.Measurement{}, nil
	}
	if round := p.startRound(time.Now()); round != nil {
		timer := time.NewTimer(totalWait)
		defer timer.Stop()
		select {
		case <-round:
		case <-timer.C:
		case <-ctx.Done():
			return snapshot.Measurement{}, ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sum, nil
}

// startRound returns what is closed at the end of the round that runs; nil if the last one is recent enough.
func (p *projects) startRound(now time.Time) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.round != nil || now.Sub(p.sum.Measured) < totalEvery {
		return p.round
	}
	round := make(chan struct{})
	p.round = round
	ids := make([]uint32, 0, len(p.taken))
	for id, live := range p.taken {
		if live {
			ids = append(ids, id)
		}
	}
	p.rounds.Go(func() {
		sum, err := p.read(ids)
		p.mu.Lock()
		if err == nil {
			p.sum = sum
		}
		p.round = nil
		p.mu.Unlock()
		close(round)
	})
	return round
}

func (p *projects) read(ids []uint32) (snapshot.Measurement, error) {
	sum := snapshot.Measurement{Measured: time.Now()}
	for _, id := range ids {
		usage, err := p.usage(id)
		if err != nil {
			return snapshot.Measurement{}, err
		}
		sum.Usage = sum.Usage.Add(usage)
	}
	return sum, nil
}

// wait returns when no round runs, or with the context's error.
func (p *projects) wait(ctx context.Context) error {
	if p == nil {
		return nil
	}
	if err := waiting.On(ctx, p.rounds.Wait); err != nil {
		return fmt.Errorf("wait for the count of projects: %w", err)
	}
	return nil
}
