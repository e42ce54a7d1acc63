//! Serves an empty API on loopback: `cargo run -p weft-apilite --example serve -- 8001`.

use std::net::{Ipv4Addr, TcpListener};

use weft_apilite::ApiServer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(8001), |port| port.parse())?;
    let server = ApiServer::builder().start()?;
    let address = server.serve(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?)?;
    eprintln!("kubectl -s http://{address} …");
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
