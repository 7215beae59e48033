package nri

import (
	"context"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"
)

// The protocol lets a plugin have containers evicted: with its answer to CreateContainer and UpdateContainer, and with a request to
// update containers. The adaptation package (v0.12.5) passes none of these on, so they are read off the connection.

// evictLimit is how long the end of a container that is evicted may take.
const evictLimit = time.Minute

// evictAnswered sees what plugins answer (ttrpc.UnaryClientInterceptor).
func (p *Plugins) evictAnswered(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
	if err := next(ctx, req, resp); err != nil {
		return err
	}
	var answer interface {
		proto.Message
		GetEvict() []*api.ContainerEviction
	}
	switch req.Method {
	case "CreateContainer":
		answer = &api.CreateContainerResponse{}
	case "UpdateContainer":
		answer = &api.UpdateContainerResponse{}
	default:
		return nil
	}
	if proto.Unmarshal(resp.Payload, answer) == nil { // else the adaptation package tells
		p.evict(answer.GetEvict())
	}
	return nil
}

// evictAsked sees what plugins ask for (ttrpc.UnaryServerInterceptor).
func (p *Plugins) evictAsked(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, next ttrpc.Method) (any, error) {
	var asked *api.UpdateContainersRequest
	out, err := next(ctx, func(v any) error {
		err := unmarshal(v)
		asked, _ = v.(*api.UpdateContainersRequest)
		return err
	})
	if err == nil {
		p.evict(asked.GetEvict())
	}
	return out, err
}

// evict kills containers in the background: what asks for it may hold up others.
func (p *Plugins) evict(all []*api.ContainerEviction) {
	for _, e := range all {
		log := logrus.WithFields(logrus.Fields{"container": e.GetContainerId(), "reason": e.GetReason()})
		st, err := p.named(e.GetContainerId())
		if err != nil {
			log.Warn("an NRI plugin evicts a container that is not there")
			continue
		}
		p.begin(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, evictLimit)
			defer cancel()
			if err := p.runtime.StopContainer(ctx, st.ID, 0); err != nil {
				log.WithError(err).Error("cannot evict a container as an NRI plugin wants")
				return
			}
			log.Warn("container is evicted by an NRI plugin")
		})
	}
}
